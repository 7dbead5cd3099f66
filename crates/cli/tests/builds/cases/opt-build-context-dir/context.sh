mkdir other; echo other >other/a; echo main >a
