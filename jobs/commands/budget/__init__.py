"""`blip3o budget`: the verb, its report on a terminal, its plots, and the file of prices. `blip3o.budget` computes."""
