"""What a run needs and costs before anything is rented: memory, FLOPs, time, money, storage, serving.

Pure arithmetic over recipes, sizes and a file of prices: no Ray, no GPU, no network. `blip3o budget` prints it.
"""
