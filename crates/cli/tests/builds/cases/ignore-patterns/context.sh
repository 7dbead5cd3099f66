printf 'a?c\n[x-z]*\n\\[lit\\]\n./dot\nup/../norm\n.\n/\n' >.dockerignore
mkdir up; for f in abc ac xx zz wx '[lit]' dot norm up/f; do echo x >"$f"; done
