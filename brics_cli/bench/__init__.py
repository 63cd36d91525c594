"""One file per benchmark of `brics bench`. Each measures on the device at hand, and says which that is."""
