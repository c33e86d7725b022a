"""How well `dermvq score` finds outliers, and which combination does best."""
