"""Lightning callbacks: a schedule plus one call to a function that a plain loop can call too."""
