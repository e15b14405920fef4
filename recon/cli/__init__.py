"""The command line: parse, call a public function, write."""

from recon.cli.commands import app


def main() -> None:
    """Run ``stillpet``."""
    app()


__all__ = ["app", "main"]
