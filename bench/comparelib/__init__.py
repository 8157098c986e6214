"""Parts of bench/compare: `machine` and `measure` are about this computer, `images` about the input, `tools` about the
peers, `copies` about the scenarios, `report` about the figures. See bench/compare for how they come together."""


class Failure(Exception):
    """Ends the run with a message for the reader: a wrong copy, a tool that failed, no space."""
