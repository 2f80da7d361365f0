"""imaging: folders of medical images become checked datasets, and the demo makes its own."""
