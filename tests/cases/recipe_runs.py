"""Running recipes in tests, through the command line and in this process."""

from click.testing import CliRunner

from fcompress.cli import main


def recipe(*arguments, code=0):
    result = CliRunner().invoke(main, ["recipe", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def run(name, out, *arguments, code=0):
    ordinary = ["--scale", "smoke", "--workers", 1, "--device", "cpu", "--out", out]
    return recipe("run", name, *ordinary, *arguments, code=code)
