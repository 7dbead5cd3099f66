printf '\n\n#a\n #b\na \n\tb\t\n' >.dockerignore; echo a >a; echo b >b; echo c >'#b'
