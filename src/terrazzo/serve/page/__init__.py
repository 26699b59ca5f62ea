"""The page that a server shows at `/`: one HTML, one style sheet, one script, and nothing from outside."""

from terrazzo.serve.page.files import PageFile as PageFile
from terrazzo.serve.page.files import page_files as page_files
