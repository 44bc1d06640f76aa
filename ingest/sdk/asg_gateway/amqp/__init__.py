"""Producers and consumers on RabbitMQ. Needs `pip install asg-gateway[amqp]`."""
