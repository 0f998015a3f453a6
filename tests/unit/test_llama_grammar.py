"""Grammars that llama.cpp would not survive."""

from pathlib import Path

import pytest

import pice.sketch
from pice.engine.llama.gbnf import ANY, Chars, read_grammar
from pice.engine.llama.grammar import grammar_problem
from pice.errors import InputError

SKETCH = (Path(pice.sketch.__file__).parent / "prompts" / "default.gbnf").read_text().replace("MAX_POINTS", "12")
NESTED = "root ::= item\nitem ::= " + '"[" (item ("," item)*)? "]" | [0-9]+'

SOUND = {
    "literal": 'root ::= "a"',
    "sketch of PICE": SKETCH,
    "nested": NESTED,
    "braces and brackets that are text": 'root ::= ("a" | [(({9,1}])* # ((( {9,1}',
    "quoted repetition": 'root ::= "{9,1}" "\\"{9,1}"',
    "every repetition": 'root ::= "a"{2} "b"{2,} "c"{2,3} "d"{ 0 , 1 } "e"* "f"+ "g"?',
    "escapes": r'root ::= "\x41\u00e9\U0001F600\t\r\n\\\"" [\[\]\-a-z^]',
    "group over lines": 'root ::= (\n "a" # one\n | "b"\n)',
    "names with dashes, windows line ends": 'root ::= a-1\r\na-1 ::= "x"\r\n',
    "any character, tokens": "root ::= . <[5]> !<[6]> <tool>",
    "nothing repeated for ever": 'root ::= ((("a"?)*)*)* "b"',
    "last definition counts": 'root ::= nothing\nnothing ::= "a"\nroot ::= "b"',
    "empty alternatives": 'root ::= "a" | ',
    "choice of hundreds": "root ::= " + " | ".join(f'"{number:x}"' for number in range(900)),
    "long repetition": "root ::= [a-z]{0,2000}",
    "right recursion": 'root ::= "a" root | "b"',
    "groups": "root ::= " + "(" * 100 + '"a"' + ")" * 100,
}

UNSOUND = {
    "number too long": ('root ::= "a"{' + "9" * 5000 + "}", "must be GBNF"),
    "nested too deep": (
        'root ::= p d0\np ::= "a" | "a"\n'
        + "".join(f'd{number} ::= d{number + 1} "x"\n' for number in range(1100))
        + 'd1100 ::= "y"',
        "must nest less",
    ),
    "too many ways to look at": (
        "root ::= "
        + " | ".join(f"a{number}" for number in range(300))
        + '\nc ::= e{0,2000} "b"\ne ::= ""\n'
        + "\n".join(f'a{number} ::= "a" c a{number} | "a"' for number in range(300)),
        "too many ways to read a text have to be looked at",
    ),
    "too long": ("root ::= " + '"a" ' * 20000, "at most 65536 bytes"),
    "NUL": ('root ::= "\0"', "NUL"),
    "no character": (r"root ::= [\U00110000-\UFFFFFFFF]", "up to"),
    "groups": ("root ::= " + "(" * 101 + '"a"' + ")" * 101, "at most 100 groups"),
    "repeated less than least": ('root ::= "a"{5,2}', "least <= most"),
    "least out of bounds": ('root ::= "a"{99999}', "least at most 2000"),
    "repeated literal": ('root ::= "' + "a" * 30000 + '"{1900}', "100000 symbols"),
    "optional literal": ('root ::= "' + "a" * 300 + '"{0,1900}', "100000 symbols"),
    "begins with itself": ('root ::= root "a" | "b"', "begin with itself, got root"),
    "begins with itself after nothing": (
        'root ::= a root "x" | "y"\na ::= b\nb ::= "x" | ',
        "begin with itself, got root",
    ),
    "begins with itself by way of others": ('root ::= a\na ::= b "x"\nb ::= a "y" | "z"', "begin with itself"),
    "same beginning again and again": (
        "root ::= a0 | a0\n" + "\n".join(f"a{n} ::= a{n + 1} | a{n + 1}" for n in range(30)) + '\na30 ::= "x"',
        "fewer rules",
    ),
    "two ways at each step": ('root ::= "a" root "b" | "a" root "c" | "d"', "1000 ways"),
    "many may be left out": ("root ::= " + '"a"? ' * 1200, "1000 ways"),
    "paths through a token": ("root ::= " + '"a"? ' * 30, "1000 ways"),
    "the same thousands of times": ("root ::= " + "|".join(['"a"'] * 1100), "1000 ways"),
    "class of thousands": ("root ::= [" + "".join(map(chr, range(0x4E00, 0x4E00 + 1100))) + "]", "in one"),
    "no root": ('start ::= "a"', "['root']"),
    "unknown name": ("root ::= foo", "['foo']"),
    "open group": ("root ::= (", "expected ')'"),
    "open text": ('root ::= "a', "line 1"),
    "open class": ("root ::= [a-", "line 1"),
    "unknown escape": ('\n\nroot ::= "\\q"', "line 3"),
    "short escape": ('root ::= "\\x4"', "line 1"),
    "nothing to repeat": ("root ::= *", "something to repeat"),
    "no arrow": ('root = "a"', "'::='"),
    "alternative on a new line": ('root ::= "a"\n| "b"', "a rule's name"),
    "bad token": ("root ::= <[a]>", "a token"),
}


@pytest.mark.parametrize("grammar", SOUND.values(), ids=SOUND)
def test_grammar_that_llama_cpp_can_follow_has_no_problem(grammar: str) -> None:
    assert grammar_problem(grammar.encode()) == ""


@pytest.mark.parametrize(("grammar", "problem"), UNSOUND.values(), ids=UNSOUND)
def test_grammar_that_would_bring_llama_cpp_down_is_told(grammar: str, problem: str) -> None:
    assert problem in grammar_problem(grammar.encode())


def test_rules_are_read_and_repetitions_written_out() -> None:
    rules = read_grammar('root ::= [^a-c\\n] "xy"{1,2} | end .\nend ::= ("z")*')
    x, y, z = (Chars(((ord(char), ord(char)),)) for char in "xyz")
    root, end = rules.names["root"], rules.names["end"]
    more = rules.sequences(root)[0][-1]
    assert rules.sequences(root) == ((Chars(((97, 99), (10, 10)), negated=True), x, y, more), (end, ANY))
    assert isinstance(more, int)
    assert rules.sequences(more) == ((x, y), ())
    (loop,) = rules.sequences(end)[0]
    assert isinstance(loop, int)
    group = rules.sequences(loop)[0][0]
    assert rules.sequences(loop) == ((group, loop), ())
    assert isinstance(group, int)
    assert rules.sequences(group) == ((z,),)


def test_number_of_symbols_is_bounded_before_they_are_made() -> None:
    with pytest.raises(InputError, match="symbols"):
        read_grammar("root ::= " + '("a"{2000} "b"{2000}) ' * 2000)
