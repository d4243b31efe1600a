"""A service that takes images from the network, examines them and sends the results on, without anybody's help."""
