"""Other people's arrays and streams: what they are, whose they are, and whether a call may take them."""
