echo a >a; mkdir d; echo b >d/b; command -v setcap >/dev/null || exit 77
setcap cap_net_raw+ep d/b
