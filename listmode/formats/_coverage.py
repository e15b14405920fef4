"""Files that hold only parts of their extent: cut files."""

from __future__ import annotations

from listmode.errors import InputError
from listmode.source import Listmode
from listmode.windows import Windows


class CoveredListmode(Listmode):
    """A file that knows which time it holds; a subclass sets ``_coverage`` last."""

    _coverage: Windows

    @property
    def extent(self) -> Windows:
        """The time that the file holds: one window, or several in a cut file."""
        return self._coverage

    def _hold(self, held: Windows | None) -> None:
        """Set what the file holds; ``None`` for all from its first to its last tick."""
        whole = Windows([self.start_ms], [self.stop_ms])
        self._coverage = whole if held is None else held.intersection(whole)

    def check_windows(self, windows: Windows) -> None:
        """Refuse windows outside the scan or in time that was cut out of the file.

        Raises
        ------
        InputError
            If there is no window, or one reaches where the file holds no time.
        """
        if windows is self._coverage and len(windows):
            return
        super().check_windows(windows)
        inside = windows.intersection(self._coverage)
        if inside.duration_s != windows.duration_s:
            raise InputError(
                f"windows must lie within the time that this cut file holds, {self._coverage}, "
                f"but they are {windows}; choose windows inside it or use the uncut file"
            )
