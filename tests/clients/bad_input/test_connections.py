"""Connections that are used as nobody should: a hundred thousand tiny requests, many at once, half-closed ones."""
import os
import socket
import threading
import time

from server import HOST, PORT, V3, BadInput, connect, memory, request, status_of

COUNT = int(os.environ.get("ONE_BYTE_REQUESTS", 100_000))
ONE_BYTE = (f"POST {V3}/login HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            "Content-Length: 1\r\n\r\nx").encode()


class Connections(BadInput):
    def test_one_byte_requests_on_one_connection(self):
        """Each is answered with an error, in turn, or the server closes; memory stays and others are served."""
        before = memory("VmRSS")
        refusals, failures, slowest = 0, [], 0
        with connect(timeout=60) as connection:

            def send():
                try:
                    for _ in range(COUNT // 100):
                        connection.sendall(ONE_BYTE * 100)
                except OSError:
                    pass  # closed: that is an answer, too

            def read():
                nonlocal refusals
                refusal, end = b"HTTP/1.1 400", b""
                while refusals < COUNT:
                    try:
                        piece = connection.recv(65_536)
                    except TimeoutError:
                        failures.append(f"neither closed nor refused any more after {refusals}")
                        return
                    except OSError:
                        return
                    if not piece:
                        return
                    refusals += (end + piece).count(refusal)
                    end = (end + piece)[-len(refusal) + 1 :]

            workers = [threading.Thread(target=work) for work in (send, read)]
            for worker in workers:
                worker.start()
            while workers[1].is_alive():
                began = time.monotonic()
                self.assertEqual(request("GET", "/_matrix/client/versions").status, 200)
                slowest = max(slowest, time.monotonic() - began)
                workers[1].join(0.5)
        workers[0].join()
        self.assertEqual(failures, [])
        self.assertGreater(refusals, 0)
        self.assertLess(slowest, 1)
        if before:
            self.assertLess(memory("VmRSS") - before, 64, "MiB more than before")

    def test_a_thousand_connections_at_once(self):
        """They say nothing; others are served as if they were not there."""
        idle = []
        try:
            for _ in range(1_000):
                idle.append(socket.create_connection((HOST, PORT), timeout=5))
            for _ in range(20):
                self.assert_alive()
        finally:
            for connection in idle:
                connection.close()
        self.assert_alive()

    def test_connections_that_go_away(self):
        """In the middle of a request, or of waiting for the answer."""
        for data in [b"", b"GE", b"GET /_matrix/client/versions HTTP/1.1\r\nHo", ONE_BYTE[:-1], ONE_BYTE]:
            for _ in range(50):
                connection = connect()
                connection.sendall(data)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
                connection.close()
        self.assert_alive()

    def test_an_answer_that_nobody_reads(self):
        """Thousands of requests of which the answers are not taken: the server stops taking more in."""
        before = memory("VmRSS")
        ask = f"GET /_matrix/client/versions HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 100
        with connect(timeout=3) as connection:
            sent = 0
            try:
                while sent < 64 * 1024 * 1024:
                    sent += connection.send(ask)
            except OSError:
                pass
            self.assertLess(sent, 64 * 1024 * 1024)
            self.assert_alive()
            if before:
                self.assertLess(memory("VmRSS") - before, 64, "MiB more than before")

    def test_a_request_half_closed(self):
        """Who closes his side after asking may still be answered, or is closed upon."""
        with connect() as connection:
            connection.sendall(ONE_BYTE)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            try:
                while piece := connection.recv(65_536):
                    received += piece
            except ConnectionResetError:
                pass
        self.assertIn(status_of(received), [None, 400])
