"""Programs of answers, where they do no harm: started outside, confined inside."""
