"""The steps of a run of events: each a function from typed inputs to files in its folder and a summary."""
