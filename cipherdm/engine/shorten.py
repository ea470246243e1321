"""Programs in fewer words: SPU reads a program's text anew at every run, and for a small model that takes longer than its run.

The reader's time goes into tokens. The compiler writes every operand's type out and frees every value on a line of its own;
here types get names, and small values stay until the program ends. Nothing is computed differently.
"""

import re

# Values of at most so many elements (16 bytes each in a party's memory) are not freed before the end.
SMALL = 8192

_TYPE = re.compile(r"tensor<((?:\d+x)*)[^<>]*(?:<[^<>]*>)?>")
_FREE = re.compile(r"\n *pphlo\.free %\w+ : (tensor<.*>)(?=\n)")
_LAYOUT = re.compile(r' \{result_layout = dense<[^>]*> : tensor<[^>]*>, xla_shape = "[^"]*"\}')


def shorten(code: bytes, small: int = SMALL) -> bytes:
    """The same textual MLIR with aliases for its tensor types, without layout notes of XLA's, and freeing large values only."""
    text = _LAYOUT.sub("", code.decode())
    text = _FREE.sub(lambda line: "" if _elements(line[1]) <= small else line[0], text)
    names: dict[str, str] = {}
    text = _TYPE.sub(lambda match: names.setdefault(match[0], f"!t{len(names)}"), text)
    return "".join([*(f"{name} = {type_}\n" for type_, name in names.items()), text]).encode()


def _elements(type_: str) -> int:
    """Elements of a tensor type."""
    count = 1
    for extent in _TYPE.match(type_)[1].split("x")[:-1]:
        count *= int(extent)
    return count
