from .cluster.preflight import DoctorConfig as DoctorConfig
from .cluster.preflight import examine_cluster as examine_cluster
from .cluster.preflight import preflight as preflight
from .data.run import DataDoctorConfig as DataDoctorConfig
from .data.run import examine_data as examine_data
