mkdir -p dir/priv/in; chmod 700 dir/priv; chmod 2770 dir/priv/in; echo x >dir/priv/in/f
