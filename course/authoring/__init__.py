"""From source text to lesson, lab and solution notebooks, and a learner's own copies of them."""
