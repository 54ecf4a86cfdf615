"""Tables, quoted figures and pictures of the READMEs, from results/."""
