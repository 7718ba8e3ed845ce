"""A study: arms compared over paired seeds, in several cells of networks, data and budgets, with the statistics of a claim."""
