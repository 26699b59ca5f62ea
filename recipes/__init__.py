"""One folder a paper: its claims, the code that checks them, the results."""
