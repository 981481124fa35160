"""Figure records drawn as static, accessible SVG: no script, and colours that follow the page into dark mode."""
