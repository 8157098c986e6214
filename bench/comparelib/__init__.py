"""Parts of bench/compare: `machine` and `measure` are about this computer, `images` about the input, `tools` about the
peers, `copies` and `backups` about the scenarios, `report` about the figures. See bench/compare for how they come together."""


class Failure(Exception):
    """Ends the run with a message for the reader: a wrong copy, mover that failed, no space."""


class ToolFailure(Failure):
    """A tool that failed, in full; `reason` is one line of it. Ends the run only where the tool is mover."""

    def __init__(self, text, reason):
        super().__init__(text)
        self.reason = reason
