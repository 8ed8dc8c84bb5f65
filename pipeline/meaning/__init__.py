"""What a network's input and outputs mean: images that go in, boxes and masks that come out."""
