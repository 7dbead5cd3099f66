printf 'A\n*.TXT\n' >.dockerignore; echo a >a; echo A >A; echo t >t.txt
