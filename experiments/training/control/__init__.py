"""Control of sd-mini by outlines: hints, and how well pictures follow them."""
