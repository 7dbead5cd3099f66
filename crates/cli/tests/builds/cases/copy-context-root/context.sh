echo a >a; mkdir d; echo .hid >.hidden
