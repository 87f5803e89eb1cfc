"""What scores rows: model directories, sessions, feeds, and what comes out of them."""
