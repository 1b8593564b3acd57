"""What a run made is published, with a card that says where it comes from: on the hub or in a folder."""
