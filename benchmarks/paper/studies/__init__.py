"""What single experiments measure, and the networks they alone use."""
