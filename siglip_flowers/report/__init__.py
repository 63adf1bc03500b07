"""An evaluation as something to look at: its analysis, and its report in HTML, text and files."""
