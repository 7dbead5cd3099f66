mkdir d1; echo a >d1/f
