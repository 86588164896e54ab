"""The words of a company that writes Russian, German and English. Each noun stands here in the forms that the sentences
use, and after "|" in one that no sentence has: whoever searches by that one finds something only if the server knows
word forms."""

# nominative, genitive, accusative, prepositional, nominative plural, genitive plural | instrumental plural
RU = """
счёт счёта счёт счёте счета счетов|счетами
договор договора договор договоре договоры договоров|договорами
отчёт отчёта отчёт отчёте отчёты отчётов|отчётами
заказ заказа заказ заказе заказы заказов|заказами
склад склада склад складе склады складов|складами
клиент клиента клиента клиенте клиенты клиентов|клиентами
проект проекта проект проекте проекты проектов|проектами
сервер сервера сервер сервере серверы серверов|серверами
принтер принтера принтер принтере принтеры принтеров|принтерами
документ документа документ документе документы документов|документами
поставщик поставщика поставщика поставщике поставщики поставщиков|поставщиками
бюджет бюджета бюджет бюджете бюджеты бюджетов|бюджетами
график графика график графике графики графиков|графиками
кабинет кабинета кабинет кабинете кабинеты кабинетов|кабинетами
чертёж чертежа чертёж чертеже чертежи чертежей|чертежами
тендер тендера тендер тендере тендеры тендеров|тендерами
станок станка станок станке станки станков|станками
ключ ключа ключ ключе ключи ключей|ключами
пропуск пропуска пропуск пропуске пропуска пропусков|пропусками
груз груза груз грузе грузы грузов|грузами
платёж платежа платёж платеже платежи платежей|платежами
автобус автобуса автобус автобусе автобусы автобусов|автобусами
архив архива архив архиве архивы архивов|архивами
акт акта акт акте акты актов|актами
"""
# article, singular, plural | dative plural or genitive, where that is a form of its own
DE = """
der Vertrag Verträge|Vertrags
die Rechnung Rechnungen|
der Bericht Berichte|Berichten
die Bestellung Bestellungen|
das Lager Lager|Lagers
der Kunde Kunden|
das Projekt Projekte|Projekten
der Server Server|Servern
der Drucker Drucker|Druckern
das Dokument Dokumente|Dokumenten
der Lieferant Lieferanten|
der Schlüssel Schlüssel|Schlüsseln
die Besprechung Besprechungen|
der Ausweis Ausweise|Ausweisen
die Lieferung Lieferungen|
der Zeitplan Zeitpläne|Zeitplänen
das Gerät Geräte|Geräten
die Zeichnung Zeichnungen|
der Antrag Anträge|Anträgen
die Maschine Maschinen|
der Auftrag Aufträge|Aufträgen
das Ergebnis Ergebnisse|Ergebnissen
die Abteilung Abteilungen|
der Fehler Fehler|Fehlern
"""
# singular, plural, a verb in the past | the same verb's other form
EN = """
contract contracts signed|signing
invoice invoices approved|approving
report reports printed|printing
order orders shipped|shipping
warehouse warehouses counted|counting
customer customers invited|inviting
project projects finished|finishing
server servers restarted|restarting
printer printers repaired|repairing
document documents translated|translating
supplier suppliers visited|visiting
budget budgets corrected|correcting
schedule schedules changed|changing
meeting meetings cancelled|cancelling
badge badges ordered|ordering
drawing drawings checked|checking
machine machines cleaned|cleaning
delivery deliveries delayed|delaying
payment payments rejected|rejecting
archive archives moved|moving
key keys returned|returning
licence licences renewed|renewing
laptop laptops replaced|replacing
training trainings planned|planning
"""

# {n0}, {n1}...: a form of a noun, {m0}...: of another; {a}, {A}, {D}: the first one's German article in nominative,
# accusative and dative; {B}: the second one's in accusative; {v}: the English verb.
SENTENCES = {
    "ru": [
        "{first}, {n0} уже готов, посмотри до {day}",
        "Где лежит последняя версия {n1}? В {room} её нет",
        "Мы отправили {n2} в {town} ещё {day}, номер {number}",
        "В {n3} ошибка: сумма {amount} руб. вместо {amount2}",
        "{full} просит переслать {n4} и {m4} по адресу {mail}",
        "Сколько {n5} осталось на {day}? По моим данным {small}",
        "Не могу открыть {file}, пишет про {n2} и код {small}",
        "Совещание по {street} переносится на {time}, возьмите {n2} и {m2}",
        "Кто отвечает за {n2}? {full} в отпуске до {day}",
        "Без {n1} бухгалтерия не проведёт {m2}, это {small} позиций",
        "Нужны подписи на {n3}, всего {small} страниц, заберу в {time}",
        "{m0} от {town} пришёл, а {n1} всё ещё нет",
        "Напомните {first}, что {n4} хранятся по адресу {ip}",
        "Адрес доставки: {street}, {small}, контакт {full}, тел. {number}",
    ],
    "de": [
        "{first}, {a} {n0} ist fertig, bitte bis {day} ansehen",
        "Wo liegt die letzte Fassung? In {room} fehlen {n1} und {m1}",
        "Wir haben {A} {n0} schon {day} nach {town} geschickt, Nummer {number}",
        "Mit {D} {n0} stimmt etwas nicht: {amount} Euro statt {amount2}",
        "{full} bittet darum, {B} {m0} an {mail} weiterzuleiten",
        "Wie viele {n1} sind {day} noch übrig? Ich zähle {small}",
        "Ich kann {file} nicht öffnen, Fehlercode {small}",
        "Das Treffen in der {street} ist um {time}, bringt {A} {n0} mit",
        "Wer kümmert sich um {B} {m0}? {full} ist bis {day} im Urlaub",
        "Ohne {A} {n0} kann die Buchhaltung {small} Posten nicht buchen",
        "Bitte {A} {n0} unterschreiben, {small} Seiten, ich hole sie um {time}",
        "{m1} aus {town} sind da, {a} {n0} fehlt noch immer",
        "Erinnert {first} daran: {n1} liegen unter {ip}",
        "Lieferadresse: {street} {small}, Kontakt {full}, Telefon {number}",
    ],
    "en": [
        "{first}, the {n0} is ready, please have a look before {day}",
        "Where is the last version of the {n0}? It is not in {room}",
        "We have {v} the {n0} for {town} on {day}, number {number}",
        "The {n0} says {amount} EUR instead of {amount2}",
        "{full} asks to forward all {n1} and {m1} to {mail}",
        "How many {n1} are left on {day}? I count {small}",
        "I cannot open {file}, it fails with code {small}",
        "The talk about {street} moves to {time}, bring the {n0} and the {m0}",
        "Who has {v} the {n0}? {full} is away until {day}",
        "Without the {m0} accounting cannot book {small} items",
        "Somebody {v} {small} {n1} at {time} without telling {full}",
        "The {m1} from {town} have arrived, the {n0} has not",
        "Remind {first} that the {n1} are kept on {ip}",
        "Delivery address: {street} {small}, contact {full}, phone {number}",
    ],
}
SHORT = {
    "ru": ["ок", "спасибо!", "+1", "сейчас посмотрю", "да, в {time}", "понял, {first}", "нет, {day}", "👍"],
    "de": ["ok", "danke!", "+1", "schaue gleich", "ja, um {time}", "verstanden, {first}", "nein, {day}", "👍"],
    "en": ["ok", "thanks!", "+1", "looking", "yes, at {time}", "got it, {first}", "no, {day}", "👍"],
}
FIRST = {
    "ru": "Анна Мария Ольга Елена Татьяна Наталья Ирина Светлана Дарья Полина Иван Алексей Дмитрий Сергей Андрей Павел "
    "Николай Михаил Юрий Олег Роман Виктор Григорий Фёдор Лев",
    "de": "Anna Lena Julia Sabine Petra Monika Ute Heike Katrin Gisela Jürgen Thomas Stefan Michael Uwe Klaus Björn "
    "Matthias Jörg Dieter Günther Torsten Rüdiger Sören Lars",
    "en": "Emma Olivia Grace Alice Ruth Helen Susan Karen Megan Chloe James Oliver George Harry William Jack Thomas "
    "Edward Simon Peter Nigel Gareth Colin Duncan Rhys",
}
LAST = {
    "ru": "Шевченко Бондаренко Коваленко Ткаченко Кравченко Лысенко Руденко Савченко Петренко Клименко Левченко Пономаренко "
    "Василенко Гончаренко Карпенко Макаренко Мельник Бойко Ковальчук Полищук Черных Седых Долгих Живаго Дурново "
    "Франко Кучер Гончар Швец Мороз",
    "de": "Müller Schmidt Schneider Fischer Weber Meyer Wagner Becker Schulz Hoffmann Schäfer Koch Bauer Richter Klein "
    "Wolf Schröder Neumann Schwarz Zimmermann Braun Krüger Hofmann Hartmann Lange Köhler Maier König Walter Huber",
    "en": "Smith Jones Taylor Brown Williams Wilson Johnson Davies Robinson Wright Thompson Evans Walker White Roberts "
    "Green Hall Wood Jackson Clarke Patel Khan Lewis Phillips Turner Hughes Parker Mitchell Bennett Campbell",
}
TOWNS = {
    "ru": "Тверь Рязань Пермь Казань Самару Тулу Уфу Омск Томск Вологду Псков Калугу",
    "de": "Bremen Kassel Jena Ulm Passau Lübeck Görlitz Trier Mainz Rostock Aachen Siegen",
    "en": "Leeds York Bristol Derby Exeter Dundee Norwich Reading Swansea Oxford Lincoln Truro",
}
STREETS = {
    "ru": "Ленина Гагарина Садовой Лесной Заводской Школьной Полевой Набережной Молодёжной Октябрьской Чехова Мира",
    "de": "Bahnhofstraße Gartenstraße Hauptstraße Lindenallee Schulstraße Bergstraße Mühlenweg Ringstraße Goethestraße "
    "Parkstraße Kirchgasse Uferstraße",
    "en": "Station-Road Church-Lane Mill-Street Park-Avenue Victoria-Street High-Street Queens-Road Bridge-Street "
    "Chapel-Lane Manor-Way Castle-Hill Grove-Road",
}
DAYS = {
    "ru": "понедельника вторника среды четверга пятницы завтра".split(),
    "de": "Montag Dienstag Mittwoch Donnerstag Freitag morgen".split(),
    "en": "Monday Tuesday Wednesday Thursday Friday tomorrow".split(),
}
# What rooms are named after; each with the topic's beginning.
SUBJECTS = {
    "ru": "Бухгалтерия Склад Закупки Продажи Кадры Логистика Ремонт Охрана Столовая Юристы Цех Архив".split(),
    "de": "Buchhaltung Lager Einkauf Vertrieb Personal Versand Werkstatt Empfang Kantine Recht Fertigung Archiv".split(),
    "en": "Accounting Warehouse Purchasing Sales Staff Shipping Workshop Reception Canteen Legal Production Archive".split(),
}
LANGUAGES = ("ru", "de", "en")


def forms(text):
    """Answers (forms that sentences use, form that none uses) of every noun."""
    return [(line.partition("|")[0].split(), line.partition("|")[2]) for line in text.strip().splitlines()]


NOUNS = {"ru": forms(RU), "de": forms(DE), "en": forms(EN)}
