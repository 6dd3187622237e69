"""Numbers become signals: what a run says about itself, and what the daemon tells the world."""
