CREATE TABLE orders (order_id INTEGER PRIMARY KEY, customer TEXT, amount TEXT, ordered_at TEXT);
INSERT INTO orders VALUES
    (1, 'Ada', '12.50', '2024-01-01T08:15:00Z'),
    (2, 'Grace', '100.00', '2024-01-01T09:30:00Z'),
    (3, 'Ada', '7.25', '2024-01-01T17:45:10Z'),
    (4, 'Edsger', '64.00', '2024-01-02T10:00:00Z'),
    (5, 'Grace', '0.99', '2024-01-02T10:00:01Z'),
    (6, 'Barbara', '250.00', '2024-01-03T07:05:30Z'),
    (7, 'Ada', '12.50', '2024-01-03T12:00:00Z'),
    (8, 'Edsger', '3.00', '2024-01-03T23:59:59Z');
