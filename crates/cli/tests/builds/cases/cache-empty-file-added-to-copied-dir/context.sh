mkdir d; echo a >d/f
