"""The length at which parts of a configuration are digested."""

import hashlib


def short_digest(data: bytes | memoryview) -> str:
    """Digest bytes to what fits a line of a configuration.

    Args:
        data: Any bytes.

    Returns:
        Twelve hexadecimal digits.

    Example:
        >>> short_digest(b"")
        'e3b0c44298fc'
    """
    return hashlib.sha256(data).hexdigest()[:12]
