"""terminal.py [--columns N] [--rows N] [--until TEXT --keys KEYS]... OUT -- COMMAND...: a picture of a terminal.

COMMAND runs on a pseudo-terminal, so it prints its colours. OUT is an SVG of the screen when it has ended. When it
shows TEXT and waits, KEYS are typed; the last ones are to end it, and the picture is of the moment before. Lines that
scrolled away are part of the picture.
"""

import argparse
import codecs
import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 7.8, 17  # of a character, in pixels
MARGIN, BAR = 16, 34
INK, FAINT, BACK, FRAME = "#d7dae0", "#8b919d", "#16191f", "#2b303a"
COLOURS = {30: "#5c6370", 31: "#ff7b72", 32: "#7fd88f", 33: "#e5c07b", 34: "#74b6ff", 35: "#d79cf0", 36: "#6fd3dd", 37: INK}
SEQUENCE = re.compile(r"\x1b(?:\[([?\d;]*)([A-Za-z])|\][^\x07]*\x07|[()][A-Z0-9]|[=>78])|([\r\n\b\x0f])|([^\x1b\r\n\b\x0f]+)")


class Screen:
    """The cells of a terminal, as far as programs of this project use one."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.lines, self.row, self.column, self.top = [[]], 0, 0, 0
        self.style = (INK, None, False)

    def feed(self, text):
        for parameters, final, control, plain in SEQUENCE.findall(text):
            if plain:
                self.write(plain)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self.go(self.row + 1, self.column)
            elif control == "\b":
                self.column = max(0, self.column - 1)
            elif final:
                self.act(parameters, final)

    def go(self, row, column):
        self.row, self.column = max(self.top, row), max(0, min(column, self.columns - 1))
        while len(self.lines) <= self.row:
            self.lines.append([])
        self.top = max(self.top, self.row - self.rows + 1)

    def write(self, text):
        for character in text:
            if self.column >= self.columns:
                self.go(self.row + 1, 0)
            line = self.lines[self.row]
            line.extend([(" ", (INK, None, False))] * (self.column + 1 - len(line)))
            line[self.column] = (character, self.style)
            self.column += 1

    def text(self):
        return "\n".join("".join(character for character, _ in line) for line in self.lines)

    def act(self, parameters, final):
        numbers = [int(number or 0) for number in parameters.strip("?").split(";")]
        first = max(1, numbers[0])
        if final == "m":
            self.paint(numbers)
        elif final in "Hf":
            self.go(self.top + first - 1, (numbers[1] if len(numbers) > 1 else 1) - 1)
        elif final in "AB":
            self.go(self.row + (first if final == "B" else -first), self.column)
        elif final in "CD":
            self.go(self.row, self.column + (first if final == "C" else -first))
        elif final == "G":
            self.go(self.row, first - 1)
        elif final == "K":
            self.lines[self.row] = self.lines[self.row][: self.column] if numbers[0] == 0 else []
        elif final == "J" and numbers[0] == 0:
            self.lines[self.row] = self.lines[self.row][: self.column]
            del self.lines[self.row + 1 :]
        elif final == "J" or (final == "h" and "1049" in parameters):
            del self.lines[self.top :]
            self.go(self.top, 0)

    def paint(self, numbers):
        ink, ground, bold = self.style
        for number in numbers:
            if number == 0:
                ink, ground, bold = INK, None, False
            elif number == 1:
                bold = True
            elif number == 2:
                ink = FAINT
            elif number == 7:
                ink, ground = BACK, INK
            elif number == 22:
                ink, bold = INK if ink == FAINT else ink, False
            elif number == 27:
                ink, ground = INK, None
            elif number == 39:
                ink = INK
            elif number % 60 in COLOURS:
                ink = COLOURS[number % 60]
        self.style = (ink, ground, bold)


def run(command, screen, steps, limit):
    """Runs `command` to its end. Each of `steps` is a text to wait for, and the keys that are typed then."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(screen.columns), LINES=str(screen.rows))
        os.environ.pop("NO_COLOR", None)
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", screen.rows, screen.columns, 0, 0))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.2)[0]:
            # It shows everything, and waits.
            if steps and steps[0][0] in screen.text():
                os.write(terminal, steps.pop(0)[1].encode())
                if not steps:
                    os.waitpid(process, 0)
                    return
            continue
        try:
            part = decoder.decode(os.read(terminal, 65536))
        except OSError:
            part = ""
        if not part:
            os.waitpid(process, 0)
            return
        screen.feed(part)
    os.kill(process, 9)
    sys.exit(f"{command} did not end within {limit} s:\n{screen.text()}")


def runs(line):
    """Pieces of a line with the same style, without blanks at their ends: column, text, style."""
    start = 0
    while start < len(line):
        end = start
        while end < len(line) and line[end][1] == line[start][1]:
            end += 1
        text = "".join(character for character, _ in line[start:end])
        if line[start][1][1]:
            yield start, text, line[start][1]
        else:
            # Each word has a place of its own, so that columns align in any font.
            for word in re.finditer(r"\S+(?: \S+)*", text):
                yield start + word.start(), word.group(), line[start][1]
        start = end


def drawn(lines, columns, title):
    width, height = round(columns * WIDTH + 2 * MARGIN), round(len(lines) * HEIGHT + BAR + 2 * MARGIN)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACK}"/>',
        f'<path d="M0 {BAR}V8a8 8 0 0 1 8-8H{width - 8}a8 8 0 0 1 8 8V{BAR}z" fill="{FRAME}"/>',
    ]
    for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        svg.append(f'<circle cx="{20 + 20 * number}" cy="{BAR / 2}" r="6" fill="{colour}"/>')
    svg.append(f'<text x="{width / 2}" y="{BAR / 2 + 4}" fill="{FAINT}" text-anchor="middle">{escape(title)}</text>')
    for row, line in enumerate(lines):
        top = BAR + MARGIN + row * HEIGHT
        for column, text, (ink, ground, bold) in runs(line):
            x, length = MARGIN + column * WIDTH, len(text) * WIDTH
            if ground:
                svg.append(f'<rect x="{x:.1f}" y="{top}" width="{length:.1f}" height="{HEIGHT}" fill="{ground}"/>')
            weight = ' font-weight="bold"' if bold else ""
            svg.append(
                f'<text x="{x:.1f}" y="{top + 0.8 * HEIGHT:.1f}" textLength="{length:.1f}" xml:space="preserve"'
                f' lengthAdjust="spacingAndGlyphs" fill="{ink}"{weight}>{escape(text)}</text>'
            )
    return "\n".join([*svg, "</svg>", ""])


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--columns", type=int, default=80)
    arguments.add_argument("--rows", type=int, default=40)
    arguments.add_argument("--until", action="append", default=[])
    arguments.add_argument("--keys", action="append", default=[])
    arguments.add_argument("--title", default="")
    arguments.add_argument("--limit", type=int, default=120)
    arguments.add_argument("out")
    arguments.add_argument("command", nargs="+")
    options = arguments.parse_args()
    screen = Screen(options.columns, options.rows)
    run(options.command, screen, list(zip(options.until, options.keys)), options.limit)
    lines = screen.lines
    while lines and not any(character.strip() for character, _ in lines[-1]):
        lines.pop()
    prompt = [(character, (FAINT, None, False)) for character in f"$ {options.title}"]
    lines[:0] = [prompt, []] if options.title else []
    with open(options.out, "w") as out:
        out.write(drawn(lines, options.columns, options.title))


main()
