"""The page of `dermvq explore`: a run, used in a browser on this machine.

Each tab is a module with a function `add`. What a tab computes is in functions
without a browser, which tests call; `server` is what `dermvq explore` runs.
"""
