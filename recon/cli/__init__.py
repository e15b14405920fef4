"""The command line: parse, call a public function, write."""

from recon.cli import cases, cohorts, images
from recon.cli.commands import app

app.add_typer(cases.app)
app.add_typer(cohorts.app)
app.add_typer(images.app)


def main() -> None:
    """Run ``stillpet``."""
    app()


__all__ = ["app", "main"]
