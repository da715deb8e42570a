"""Two machines of the demo, by name, so that they are started when they are stopped."""

web = (["@orbstack/web"], {"greeting": "Hello from the web"})
db = (["@orbstack/db"], {"greeting": "Hello from the database"})
