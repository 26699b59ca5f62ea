"""CLINC150 as five problems of 30 classes, each two of its ten domains.

The domains are those of domains.json at https://github.com/clinc/oos-eval (CC BY 3.0), which data_full.json does not
repeat.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from terrazzo.tasks import Example

_INTENTS = {
    "money": (
        "freeze_account routing pin_change bill_due pay_bill account_blocked interest_rate min_payment "
        "bill_balance transfer order_checks balance spending_history transactions report_fraud "
        "replacement_card_duration expiration_date damaged_card improve_credit_score report_lost_card "
        "card_declined credit_limit_change apr redeem_rewards credit_limit rewards_balance application_status "
        "credit_score new_card international_fees"
    ),
    "household": (
        "food_last confirm_reservation how_busy ingredients_list calories nutrition_info recipe "
        "restaurant_reviews restaurant_reservation meal_suggestion restaurant_suggestion cancel_reservation "
        "ingredient_substitution cook_time accept_reservations what_song play_music todo_list_update reminder "
        "reminder_update calendar_update order_status update_playlist shopping_list calendar next_song order "
        "todo_list shopping_list_update smart_home"
    ),
    "journeys": (
        "current_location oil_change_when oil_change_how uber traffic tire_pressure schedule_maintenance gas mpg "
        "distance directions last_maintenance gas_type tire_change jump_start plug_type travel_notification "
        "translate flight_status international_visa timezone exchange_rate travel_suggestion travel_alert "
        "vaccines lost_luggage book_flight book_hotel carry_on car_rental"
    ),
    "office": (
        "weather alarm date find_phone share_location timer make_call calculator definition "
        "measurement_conversion flip_coin spelling time roll_dice text pto_request_status next_holiday "
        "insurance_change insurance meeting_schedule payday taxes income rollover_401k pto_balance pto_request w2 "
        "schedule_meeting direct_deposit pto_used"
    ),
    "talk": (
        "who_made_you meaning_of_life who_do_you_work_for do_you_have_pets what_are_your_hobbies fun_fact "
        "what_is_your_name where_are_you_from goodbye thank_you greeting tell_joke are_you_a_bot how_old_are_you "
        "what_can_i_ask_you change_speed user_name whisper_mode yes change_volume no change_language repeat "
        "change_accent cancel sync_device change_user_name change_ai_name reset_settings maybe"
    ),
}
#: The classes of each problem.
PROBLEMS = {problem: tuple(intents.split()) for problem, intents in _INTENTS.items()}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows with their problem: for training, for choosing, and the test set."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]

    def of(self, problem: str) -> Rows:
        """The rows of one problem."""
        train, dev, test = (
            [row for row in rows if row.problem == problem] for rows in (self.train, self.dev, self.test)
        )
        return Rows(train=train, dev=dev, test=test)


def clinc(file: Path) -> Rows:
    """The in-scope rows of data_full.json (15,000, 3,000 and 4,500) or of data_small.json (7,500 for training)."""
    parts = json.loads(file.read_text(encoding="utf-8"))
    owner = {intent: problem for problem, intents in PROBLEMS.items() for intent in intents}
    train, dev, test = (
        [
            Example(text=text, target=intent, problem=owner[intent], where=f"{part} {i}")
            for i, (text, intent) in enumerate(parts[part])
        ]
        for part in ("train", "val", "test")
    )
    return Rows(train=train, dev=dev, test=test)


def invented(classes: Mapping[str, int] | None = None, per_class: int = 6) -> Rows:
    """Tiny problems whose classes have a word of their own, for the smoke tier."""
    classes = classes or {"first": 2, "second": 2}
    random_ = random.Random(0)
    rows = []
    for problem, count in classes.items():
        for index in range(count):
            for _ in range(per_class):
                words = [random_.choice(("the", "a", "one")), f"{problem}{index}", random_.choice(("please", "now"))]
                rows.append(Example(text=" ".join(words), target=f"class{index}", problem=problem))
    return Rows(train=rows, dev=rows, test=rows)
