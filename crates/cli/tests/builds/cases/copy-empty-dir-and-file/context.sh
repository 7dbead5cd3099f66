mkdir empty; : >none
