echo a >a; mkdir d; echo x >d/x
