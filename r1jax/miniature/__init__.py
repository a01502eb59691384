"""The synthetic world of the miniature: corpus, writers, judge and baseline."""
