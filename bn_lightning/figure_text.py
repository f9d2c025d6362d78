"""Text in figures."""


def plain_text(text: object) -> str:
    r"""Text that a figure shows as it is.

    In matplotlib two dollar signs enclose a formula: names of layers and arms, which are the user's, would be set as
    one, or be an error where it is not valid.

    Args:
        text: A name, label or message, without formulas of its own.

    Returns:
        The text with its dollar signs escaped.

    Example:
        >>> print(plain_text("costs $5"))
        costs \$5
    """
    return str(text).replace("$", r"\$")
