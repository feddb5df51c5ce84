"""What travels: header, URL, request, body, framing, cookies, forms."""
