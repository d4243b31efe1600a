"""What a node says of a study as a whole."""

from test_node import archive, count, find_port, model, start, store, study, wait_for  # noqa: F401
from test_outputs_dicom_study import codes

from unary.clinic.node.config import Destination, Sending
from unary.outputs.dicom import study_summary as summing

CAD_REPORT = "1.2.840.10008.5.1.4.1.1.88.50"


def find_summaries(received):
    return [each for each in received if each.get("SeriesDescription", "").startswith("unary study summary")]


def test_a_complete_study_has_its_objects_and_others_when_images_come_late(model_folder, model, study, tmp_path):  # noqa: F811
    with archive() as (port, received):
        destination = Destination("pacs", dimse=f"PACS@127.0.0.1:{port}")
        with start(model_folder, model, tmp_path / "state", destinations=(destination,)) as node:
            store(node.dimse_port, study[:2])
            wait_for(lambda: count(node, "sent") == 2)
            first = list(received)
            store(node.dimse_port, study[2:])
            wait_for(lambda: count(node, "sent") == 4)
            assert len(list((tmp_path / "state").rglob("study.json"))) == 1
    assert [codes(each, summing.STATE) for each in find_summaries(first)] == [["EXAMINED"] * 2]
    assert [codes(each, summing.STATE) for each in find_summaries(received)] == [["EXAMINED"] * 2, ["EXAMINED"] * 4]
    assert len([each for each in received if each.SOPClassUID == CAD_REPORT]) == 2
    assert len({each.SOPInstanceUID for each in received}) == len(received)


def test_of_what_could_not_be_delivered_the_latest_goes_alone(model_folder, model, study, tmp_path):  # noqa: F811
    port = find_port()
    settings = {
        "destinations": (Destination("pacs", dimse=f"PACS@127.0.0.1:{port}"),),
        "sending": Sending(first_pause_s=0.2, longest_pause_s=0.4),
    }
    with start(model_folder, model, tmp_path / "state", **settings) as node:
        store(node.dimse_port, study[:2])
        wait_for(lambda: count(node, "done") == 2)
        store(node.dimse_port, study[2:])
        wait_for(lambda: count(node, "done") == 4)
        gone = node.state.query("SELECT kind FROM deliveries WHERE state = 'superseded'")
        assert sorted(row["kind"] for row in gone) == ["cad_report", "study_summary"]
        with archive(port=port) as (_, received):
            wait_for(lambda: count(node, "sent") == 4)
    assert [codes(each, summing.STATE) for each in find_summaries(received)] == [["EXAMINED"] * 4]
    assert len([each for each in received if each.SOPClassUID == CAD_REPORT]) == 1


def test_destinations_may_do_without_a_cad_report(model_folder, model, study, tmp_path):  # noqa: F811
    with archive() as (port, received):
        destination = Destination("pacs", dimse=f"PACS@127.0.0.1:{port}", kinds=("capture", "study_summary"))
        with start(model_folder, model, tmp_path / "state", destinations=(destination,)) as node:
            store(node.dimse_port, study[:1])
            wait_for(lambda: count(node, "sent") == 1)
    assert sorted(each.Modality for each in received) == ["OT", "SR"]
